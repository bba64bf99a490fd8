"""What a browser may say to the player, checked field by field: anything else is refused with one message."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from qvg_cli.errors import UsageError

Key = Literal["w", "a", "s", "d", "left", "right", "up", "down", "go"]
"""A move of the camera; "go" makes the next chunk of a model that has no camera."""
MAX_BYTES = 16_384
"""Of one message; the longest is a prompt."""
MAX_PROMPT = 2_000


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hold(_Message):
    """Which keys are down now; one that was not before is a move."""

    type: Literal["hold"]
    keys: Annotated[tuple[Key, ...], Field(strict=False, max_length=4)]


class Stop(_Message):
    """Forget the moves that wait."""

    type: Literal["stop"]


class Prompt(_Message):
    """Another prompt from the next chunk on."""

    type: Literal["prompt"]
    text: str = Field(min_length=1, max_length=MAX_PROMPT)


class World(_Message):
    """Begin anew, in an uploaded picture or that of the settings."""

    type: Literal["world"]
    prompt: str | None = Field(None, min_length=1, max_length=MAX_PROMPT)
    picture: str | None = Field(None, max_length=100)
    seed: int | None = Field(None, ge=0, lt=2**63)


class TakeUp(_Message):
    """Go on with a run by the name of its folder."""

    type: Literal["take_up"]
    name: str = Field(max_length=255)


class Save(_Message):
    """Write the files of the walk so far."""

    type: Literal["save"]


class Shown(_Message):
    """A frame is on the screen, and all before it were."""

    type: Literal["shown"]
    frame: int = Field(ge=0, lt=2**32)


class Sit(_Message):
    """A viewer wants to play."""

    type: Literal["sit"]


Message = Hold | Stop | Prompt | World | TakeUp | Save | Shown | Sit
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def read_message(text: str | bytes) -> Message:
    """The message in a text; `UsageError` if it is none."""
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"a message is not understood: {place or 'it'}: {first['msg']}") from error
