"""The middleware: a policy on every answer, limits on uploads."""

import asyncio

import pytest

from repmlp_app import guard
from repmlp_app.guard import FORM, MAX_UPLOAD, MAX_UPLOADS, POLICY, Guard


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})


def answer(app, path="/gradio_api/upload", method="POST", length: int | None = 100):
    """Status and headers of the answer to a request."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_every_answer_has_the_policy_and_keeps_its_headers():
    app = Guard(application)
    assert answer(app, "/", "GET") == (200, {b"x": b"y", b"content-security-policy": POLICY})
    assert answer(app, length=10**9) == (413, {b"content-security-policy": POLICY})


@pytest.mark.parametrize(
    ("length", "status"), [(MAX_UPLOAD, 200), (MAX_UPLOAD + FORM, 200), (MAX_UPLOAD + FORM + 1, 413), (None, 413)]
)
def test_a_large_upload_is_refused(length, status):
    assert answer(Guard(application), length=length)[0] == status
    assert answer(Guard(application), "/run", length=length)[0] == 200


def test_many_uploads_are_refused_until_the_first_ones_are_deleted(monkeypatch):
    clock = iter([*range(MAX_UPLOADS), MAX_UPLOADS, guard.KEPT, guard.KEPT])
    monkeypatch.setattr(guard, "monotonic", lambda: next(clock))
    app = Guard(application)
    assert [answer(app)[0] for _ in range(MAX_UPLOADS + 1)] == [200] * MAX_UPLOADS + [413]
    assert [answer(app)[0] for _ in range(2)] == [200, 413]
