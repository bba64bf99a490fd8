"""The proxies that the environment names: told before the HTTP library meets one that it cannot use."""

import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from qvg_cli.errors import UsageError

_SCHEMES = ("http", "https", "socks5", "socks5h")


def check_proxies() -> None:
    """Refuse proxies that cannot be used, by the name of the variable."""
    found = getproxies()
    if "*" in (host.strip() for host in found.get("no", "").split(",")):
        return
    for kind in ("http", "https", "all"):
        if value := found.get(kind):
            _check(_variable(kind), value)


def proxy_for(address: str) -> str | None:
    """The variable and the proxy on the way to `address`, such as `ALL_PROXY=socks5://host:1080`."""
    parts = urlsplit(address)
    found = getproxies()
    if parts.hostname and proxy_bypass(parts.hostname):
        return None
    for kind in (parts.scheme, "all"):
        if value := found.get(kind):
            return f"{_variable(kind)}={value}"
    return None


def _check(variable: str, value: str) -> None:
    address = value if "://" in value else f"http://{value}"
    try:
        url = httpx2.URL(address)
        is_address = bool(url.host)
    except httpx2.InvalidURL:
        is_address = False
    scheme = address.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        near = f"; for a SOCKS 5 proxy write socks5{address[len(scheme) :]}" if "socks" in scheme else ""
        raise UsageError(
            f"{variable}={value}: proxies of type {scheme} are not supported",
            hint=f"supported: {', '.join(_SCHEMES)}{near}; or unset {variable}",
        )
    if not is_address:
        raise UsageError(
            f"{variable}={value} is not a proxy address", hint="e.g. http://host:3128, or unset it"
        )
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise UsageError(
            f"{variable}={value}: the package for SOCKS proxies is missing", hint="pip install socksio"
        )


def _variable(kind: str) -> str:
    """The variables that name the proxy for `kind`, as they are written; small letters win over capitals."""
    value = getproxies().get(kind)
    names = [name for name in os.environ if name.lower() == f"{kind}_proxy" and os.environ[name] == value]
    return " and ".join(sorted(names)) or f"{kind}_proxy"
