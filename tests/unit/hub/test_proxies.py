"""Proxies of the environment: those that cannot be used are named, the others are on the way to the hub."""

import httpx2
import pytest

from qvg_cli.errors import QvgError, UsageError
from qvg_cli.hub.errors import hub_errors
from qvg_cli.hub.proxies import check_proxies, proxy_for
from qvg_cli.hub.remote import list_files

NAMES = [
    name for kind in ("all", "http", "https", "no") for name in (f"{kind}_proxy", f"{kind}_PROXY".upper())
]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("scheme", ["socks", "socks4", "socks4a", "ftp"])
def test_a_proxy_of_an_unknown_kind_is_named(monkeypatch, name, scheme):
    monkeypatch.setenv(name, f"{scheme}://127.0.0.1:9/")
    with pytest.raises(UsageError) as caught:
        list_files("someone/model", "main")
    said = f"{name}={scheme}://127.0.0.1:9/: proxies of type {scheme} are not supported"
    assert str(caught.value) == said
    assert caught.value.hint.endswith(f"or unset {name}")
    assert ("write socks5://127.0.0.1:9/" in caught.value.hint) == scheme.startswith("socks")


@pytest.mark.parametrize("value", ["http://", "http://[::1", "http://host:port", "socks5://"])
def test_what_is_no_address_is_named(monkeypatch, value):
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(UsageError, match="is not a proxy address"):
        check_proxies()


@pytest.mark.parametrize(
    "value", ["host:3128", "http://host", "https://u:p@host:1", "SOCKS5://h:1", "socks5h://h:1"]
)
def test_what_can_be_used_is_taken(monkeypatch, value):
    monkeypatch.setenv("ALL_PROXY", value)
    check_proxies()
    assert proxy_for("https://huggingface.co") == f"ALL_PROXY={value}"


def test_both_ways_of_writing_a_variable_are_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://h:1")
    monkeypatch.setenv("all_proxy", "socks://h:1")
    with pytest.raises(UsageError, match=r"^ALL_PROXY and all_proxy=socks://h:1: "):
        check_proxies()


def test_no_proxy_leaves_them_out(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://h:1")
    monkeypatch.setenv("NO_PROXY", "*")
    check_proxies()
    assert proxy_for("https://huggingface.co") is None


def test_the_library_takes_a_socks_proxy_and_one_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(QvgError) as caught, hub_errors("someone/model", "main"), httpx2.Client():
        raise httpx2.ConnectError("refused")
    assert str(caught.value) == (
        "no connection to https://huggingface.co through the proxy ALL_PROXY=socks5://127.0.0.1:9: refused"
    )
