"""Trust in a judge: report on its scores, second judge on a sample, plots."""
