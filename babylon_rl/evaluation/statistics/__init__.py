"""Statistics of experiments of a fixed size (``intervals``) and of data looked at while they come in (``live``)."""
