"""Start the servers of object stores once, and name them to the clients."""

import importlib.util
import uuid

import pytest

if importlib.util.find_spec("obstore") is None or importlib.util.find_spec("moto") is None:
    collect_ignore_glob = ["*"]  # of soups[stores] and soups[dev]

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def servers():
    from store_servers import Proxy, s3_server

    with s3_server() as server, Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def proxy(servers, monkeypatch):
    """Return the proxy, which fails nothing yet, as the endpoint of all stores; leases end after 2.5 s."""
    from soups import leases, stores

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": servers.url, "STORAGE_EMULATOR_HOST": servers.url}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(leases, "SECONDS", 2.5)
    servers.mend()
    yield servers
    servers.mend()
    stores._store.cache_clear()


@pytest.fixture
def folder(proxy):
    """Return the URL of a folder of a store in which nothing is: of S3, and of GCS where a test asks for it."""
    return f"s3://bucket/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["s3", "gs"])
def either(request, folder):
    """Return such a URL of S3, then one of GCS."""
    return folder.replace("s3", request.param)
