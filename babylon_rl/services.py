"""Services that train and keep weights: name, addresses and key of each in one place.

A service's key goes to its own addresses only, whatever a checkpoint names.
"""

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from babylon_rl.settings import Settings

LOCAL = "local"
LOCAL_BACKENDS = ("cpu", "gpu", "dry")
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Service:
    """One service.

    Attributes:
        name: of the upstream in routes; title: in sentences; backend: of the trainer whose weights it keeps.
        base_url: OpenAI-compatible inference.
        key_variable, price_variable: settings of its key and of dollars per million tokens.
        address_variables: settings that give it other addresses than its own.
    """

    name: str
    title: str
    backend: str
    base_url: str
    key_variable: str
    price_variable: str
    address_variables: tuple[str, ...]

    def key(self, settings: Settings) -> str:
        """Its key in clear text; empty if not set."""
        value: SecretStr | None = getattr(settings, self.key_variable.lower())
        return "" if value is None else value.get_secret_value()

    def refusal(self, url: str, settings: Settings) -> str | None:
        """Reason not to send its key to a URL; None for its own addresses."""
        given = [getattr(settings, name.lower()) for name in self.address_variables]
        asked = urlsplit(url)
        if _origin(asked) in {_origin(urlsplit(own)) for own in (self.base_url, *given) if own is not None}:
            return None
        return (
            f"{asked.scheme}://{asked.netloc.rpartition('@')[2]} is no address of {self.title}, so {self.key_variable} is not sent there. "
            f"If it is one, set {self.address_variables[0]} to it."
        )


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)


WANDB = Service(
    "wandb", "Weights & Biases", "serverless", "https://api.inference.wandb.ai/v1", "WANDB_API_KEY", "SERVERLESS_USD_PER_MILLION_TOKENS",
    ("SERVERLESS_BASE_URL", "WANDB_BASE_URL"),
)  # fmt: skip
SERVICES = {service.name: service for service in (WANDB,)}


def upstream_of(backend: str | None, storage_path: str) -> str:
    """Upstream of a backend's versions: LOCAL, a service, or the backend itself where none is known.

    Another producer's version has no backend: a path or an address is of files, anything else is a name at Weights & Biases.
    """
    if backend is None:
        return LOCAL if storage_path.startswith(("/", ".", "http:", "https:", "file:", "s3:")) else WANDB.name
    return LOCAL if backend in LOCAL_BACKENDS else next((one.name for one in SERVICES.values() if one.backend == backend), backend)


def unknown_service(version: str, upstream: str) -> str | None:
    """Reason not to ask a version, as its service is not known here, else None."""
    if upstream == LOCAL or upstream in SERVICES:
        return None
    return f"{version} cannot be asked: it is at the service {upstream}, which this release does not know (it knows {', '.join(SERVICES)})."


def service_in_use(settings: Settings) -> Service | None:
    """The service that trains under these settings and has a key; None when this machine trains."""
    for service in SERVICES.values():
        trains = settings.trainer == service.backend or (settings.trainer is None and not settings.train_rl_local)
        if trains and service.key(settings):
            return service
    return None
