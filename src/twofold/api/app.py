"""The HTTP face of the daemon: routes by noun, one shape of errors, OpenAPI with examples."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from twofold import __version__
from twofold.api import replies
from twofold.api.limits import Limits
from twofold.api.routes import (
    guest_os,
    host,
    images,
    instances,
    operations,
    payload,
    screen,
    snapshots,
    templates,
)
from twofold.api.services import Services
from twofold.errors import TwofoldError

DESCRIPTION = """\
Run one image behind either wall: a container or a virtual machine.

Errors are `{"error": {code, message, hint, exit_code, details}}`. Verbs that may take long answer
with a stream of JSON lines when asked with `Accept: application/x-ndjson`.
"""


def create_app(services: Services) -> FastAPI:
    """The application for one daemon. Serves on a local socket: there is no authentication in it,
    the socket's owner and mode are."""
    app = FastAPI(
        title="Twofold",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=replies.SHAPES,
        # An empty name would be redirected to the list, and clients do not follow.
        redirect_slashes=False,
    )
    app.state.services = services
    app.add_middleware(Limits)
    app.add_exception_handler(TwofoldError, replies.on_twofold_error)
    app.add_exception_handler(RequestValidationError, replies.on_invalid)
    app.add_exception_handler(HTTPException, replies.on_http_error)
    app.add_exception_handler(Exception, replies.on_bug)
    nouns = (host, instances, payload, snapshots, screen, images, templates, guest_os, operations)
    for module in nouns:
        app.include_router(module.router, prefix="/v1")
    return app
