"""Templates: list, show, remove, limit. They are made by starting a virtual machine."""

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import reply
from twofold.api.services import services
from twofold.model.template import Template, TemplateLimit, TemplateLimitRequest

router = APIRouter(tags=["templates"])


class Freed(BaseModel):
    size_bytes: int


@router.get("/templates", response_model=list[Template], summary="All templates")
async def list_templates(request: Request) -> Response:
    found = await services(request).instances.templates.select()
    return reply([template.model_dump(mode="json") for template in found])


@router.get("/templates/{key}", response_model=Template, summary="One template")
async def show_template(request: Request, key: str) -> Response:
    found = await services(request).instances.templates.find(key)
    return reply(found.model_dump(mode="json"))


@router.delete("/templates/{key}", response_model=Freed, summary="Remove a template")
async def remove_template(request: Request, key: str) -> Response:
    store = services(request).instances.templates.store
    return reply({"size_bytes": await asyncio.to_thread(store.remove, key)})


@router.get("/template-limit", response_model=TemplateLimit, summary="What all may take")
async def show_limit(request: Request) -> Response:
    return reply((await services(request).instances.templates.limit()).model_dump(mode="json"))


@router.put("/template-limit", response_model=TemplateLimit, summary="Set what all may take")
async def set_limit(request: Request, body: TemplateLimitRequest) -> Response:
    """The least used that exceed it are removed at once; running forks of them go on."""
    made = await services(request).instances.templates.set_limit(body.limit_bytes)
    return reply(made.model_dump(mode="json"))
