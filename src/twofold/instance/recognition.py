"""Which operating system is on an image that brings one: asked of ``osinfo`` whenever it is shown,
never stored, so that a newer database knows more of an old image."""

import asyncio

from twofold import osinfo
from twofold.model.image import Image
from twofold.osinfo import report


async def recognised(image: Image) -> Image:
    """The image with ``identified`` where a rule recognises what is on its disk."""
    if image.disk is None:
        return image
    found = await asyncio.to_thread(osinfo.identify, image.disk)
    if found is None:
        return image
    return image.model_copy(update={"identified": report.match(found)})
