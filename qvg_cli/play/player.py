"""Walks through one world after the other, in a thread of its own, as the keys say.

Invariant: a chunk is made only while a move waits or a key is down, and nobody's walk is lost: one that ends,
whatever ends it, is saved first.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvg_cli.engine.engine import Engine
from qvg_cli.engine.session import Chunk, Session
from qvg_cli.errors import QvgError, UsageError, shown_error
from qvg_cli.files import RunDir, run_name, slug
from qvg_cli.models.registry import family_of
from qvg_cli.planning.chunks import ChunkPlan
from qvg_cli.planning.ledger import total
from qvg_cli.planning.prompts import check_prompt, unknown_words
from qvg_cli.play.walk import WalkFolder, option_value, with_option
from qvg_cli.video.io import Frames, count_frames_and_seconds, read_frames
from qvg_cli.video.picture import fill_frame, open_image

LOG = logging.getLogger(__name__)

MOST_WAITING = 8
"""Moves that wait at most; more are not taken."""
_MOST_WORDS = 4
_PAIRS = (("w", "s"), ("a", "d"), ("left", "right"), ("up", "down"))
_OPPOSITES = {key: other for pair in _PAIRS for key, other in (pair, pair[::-1])}


class _Closed(Exception):
    """The player ends in the middle of a chunk."""


class Player:
    """One walk at a time, saved under the name `record` or the prompt's words.

    Args:
        tell: Takes what a browser has to know, from any thread.
        show: Takes pixels `[n, height, width, 3]` uint8, in their order.
    """

    def __init__(
        self,
        engine: Engine,
        out: Path,
        *,
        record: str | None,
        tell: Callable[[dict[str, Any]], None],
        show: Callable[[Frames], None],
        note: Callable[[str], None],
    ) -> None:
        self.saved: list[RunDir] = []
        self._engine = engine
        self._out = out
        self._record = record
        self._tell = tell
        self._show = show
        self._note = note
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._tasks: deque[Callable[[], None]] = deque()
        self._moves: deque[tuple[str, ...]] = deque()
        self._held: tuple[str, ...] = ()
        self._has_room = True
        self._is_closing = False
        self._status = "loading"
        # Of the thread alone from here on.
        self._session: Session | None = None
        self._folder: WalkFolder | None = None
        self._given: RunDir | None = None
        self._picture: Path | None = None
        self._next_prompt: str | None = None
        self._is_saved = True
        self._path: list[list[float]] = []
        self._figures: dict[str, Any] = {}

    @property
    def has_camera(self) -> bool:
        return option_value(self._engine.config, "--pose") is not None

    def start(self, first: Callable[[], None]) -> None:
        self._tasks.append(first)
        self._thread.start()

    def hold(self, keys: Sequence[str]) -> None:
        """The keys that are down now; one that was not is a move that waits for its chunk."""
        with self._wake:
            keys = _without_opposites(keys)
            if set(keys) - set(self._held) and len(self._moves) < MOST_WAITING:
                self._moves.append(keys)
            self._held = keys
            self._wake.notify()
        self._tell_state()

    def stop(self) -> None:
        """Forget the moves that wait; the chunk in hand is finished."""
        self._forget_moves()
        self._tell_state()

    def set_room(self, has_room: bool) -> None:
        """Say whether the browser has shown enough for another chunk to be made."""
        with self._wake:
            self._has_room = has_room
            self._wake.notify()

    def set_prompt(self, text: str) -> None:
        if self.has_camera:
            hint = "start a new world with it"
            raise UsageError("this model uses one prompt for the whole walk", hint=hint)
        self._next_prompt = check_prompt(text)
        self._tell_state()

    def begin(self, prompt: str | None = None, picture: Path | None = None, seed: int | None = None) -> None:
        """Begin another world; the walk before is saved."""
        self._do(lambda: self._begin(prompt, picture, seed))

    def take_up(self, run: RunDir) -> None:
        """Go on with a saved run; the walk before is saved."""
        self._do(lambda: self._take_up(run))

    def save(self) -> None:
        """Write the files of the walk so far, which goes on."""
        self._do(self._save)

    def close(self) -> None:
        """End at the next model call, and save what was walked; `QvgError` if it cannot be saved."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._keep()

    def state(self) -> dict[str, Any]:
        """What a browser shows, but for the picture and the path."""
        with self._wake:
            moves, held = [list(keys) for keys in self._moves], list(self._held)
        config = self._engine.config if self._session is None else self._session.config
        return {
            "type": "state",
            "status": self._status,
            "prompt": config.prompt if self._session is None else self._session.prompt,
            "next_prompt": self._next_prompt,
            "seed": config.seed,
            "model": config.model.name,
            "cache": config.cache.preset,
            "camera": self.has_camera,
            "picture": any(option.flag == "--image" for option in family_of(config).options),
            "fps": config.video.fps,
            "height": config.video.height,
            "width": config.video.width,
            "moves": moves,
            "held": held,
            "is_saved": self._is_saved,
            "frames": 0 if self._session is None else self._session.num_frames,
            **self._figures,
        }

    def path(self) -> dict[str, Any]:
        """The whole path: right, ahead and heading in degrees of every latent frame."""
        return {"type": "path", "begin": 0, "points": self._path}

    def _do(self, task: Callable[[], None]) -> None:
        with self._wake:
            self._tasks.append(task)
            self._wake.notify()

    def _forget_moves(self) -> None:
        with self._wake:
            self._moves.clear()
            self._held = ()

    def _run(self) -> None:
        while (task := self._wait()) is not None:
            try:
                task()
            except _Closed:
                return
            except Exception as error:
                if not isinstance(error, UsageError):
                    LOG.error("failed", exc_info=error)
                self._fail(error)
            self._set_status("failed" if self._session is None else "ready")

    def _wait(self) -> Callable[[], None] | None:
        """The next thing to do; `None` at the end."""
        with self._wake:
            self._wake.wait_for(
                lambda: (
                    self._is_closing
                    or self._tasks
                    or ((self._moves or self._held) and self._has_room and self._session is not None)
                )
            )
            if self._is_closing:
                return None
            if self._tasks:
                return self._tasks.popleft()
            keys = self._moves.popleft() if self._moves else self._held
        return lambda: self._step(keys)

    def _begin(self, prompt: str | None, picture: Path | None, seed: int | None) -> None:
        self._leave_world()
        self._set_status("loading")
        options: dict[str, Any] = {} if picture is None else {"image": str(picture)}
        # Given even if it is the settings' own: those of a run may have a schedule, and a walk has none.
        prompt = prompt or self._engine.config.prompt
        self._session = self._engine.session(prompt, seed=seed, on_step=self._check_open, **options)
        self._picture = picture
        config = self._session.config
        if config.model.weights == "pocket" and (words := unknown_words(config.prompt, config.family_name)):
            named = ", ".join(map(repr, words[:_MOST_WORDS]))
            self._tell({"type": "notice", "message": f"the demo model does not know {named}"})
        if (image := option_value(config, "--image")) is not None:
            video = config.video
            self._show(fill_frame(open_image(image), height=video.height, width=video.width)[None])
        self._tell_path(0)

    def _take_up(self, run: RunDir) -> None:
        self._leave_world()
        self._set_status("loading")
        self._session = self._engine.take_up(run.path, on_step=self._check_open)
        self._given = run
        _, seconds = count_frames_and_seconds(run.video)
        *_, last = read_frames(run.video, start_seconds=max(0.0, seconds - 0.5))
        self._show(last[None])
        self._tell_path(0)

    def _step(self, keys: tuple[str, ...]) -> None:
        session = self._session
        assert session is not None
        self._set_status("making")
        prompt, self._next_prompt = self._next_prompt, None
        try:
            chunk = session.step(prompt=prompt, pose=self._pose(session, keys), on_frames=self._show)
        except UsageError:
            # The session is as it was.
            raise
        except BaseException:
            self._session = None
            raise
        begin = len(self._path)
        self._figures = _figures(chunk)
        self._is_saved = False
        if self._folder is None:
            self._folder = self._open_folder(session)
        config = session.config
        if self._picture is not None:
            # The copy of an uploaded picture, which stays with the walk.
            config = with_option(config, "--image", str(self._picture.absolute()))
        self._folder.add(chunk, config)
        self._tell_path(begin)

    def _pose(self, session: Session, keys: Sequence[str]) -> str | None:
        """The keys' moves, which share the latent frames of the next chunk."""
        if session.viewmats is None:
            return None
        config = session.config
        made = 0 if not session.num_frames else config.video.frames
        # The start has a pose already: a first chunk needs one move less.
        missing = made + config.sampler.frames_per_chunk - len(session.viewmats)
        share, more = divmod(missing, len(keys))
        return ",".join(f"{key}-{share + (number < more)}" for number, key in enumerate(keys))

    def _open_folder(self, session: Session) -> WalkFolder:
        config = session.config
        name = self._given.path.name if self._given else run_name(config.prompt, config.seed)
        name = self._record or name
        run = RunDir.create(self._out.parent, self._out.name, slug(name) or "walk")
        folder = WalkFolder(run, self._engine.device, self._given)
        if self._picture is not None:
            self._picture = folder.keep_picture(self._picture)
        return folder

    def _save(self) -> None:
        if self._folder is None:
            raise UsageError("there is nothing to save yet", hint="press a key first")
        self._set_status("saving")
        self._folder.save()
        self._is_saved = True
        self._told_saved(self._folder.run)

    def _leave_world(self) -> None:
        """End the walk in hand, saved."""
        self._forget_moves()
        self._keep()
        self._session, self._given, self._picture, self._next_prompt = None, None, None, None
        self._path, self._figures, self._is_saved = [], {}, True
        self._tell({"type": "flush"})

    def _keep(self) -> None:
        """Leave the walk's folder as a whole run."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.finish()
            self._is_saved = True
            self._told_saved(folder.run)

    def _told_saved(self, run: RunDir) -> None:
        if run.path not in [known.path for known in self.saved]:
            self.saved.append(run)
        self._note(f"saved: {run.path}")
        self._tell({"type": "saved", "name": run.path.name})

    def _fail(self, error: BaseException) -> None:
        shown = shown_error(error)
        hint = shown.hint
        if self._session is None:
            self._forget_moves()
            try:
                self._keep()
            except QvgError as second:
                hint = f"{hint}; {second}" if hint else str(second)
        self._note(f"{shown}" + (f"; {hint}" if hint else ""))
        self._tell({"type": "error", "message": str(shown), "hint": hint})

    def _check_open(self) -> None:
        if self._is_closing:
            raise _Closed

    def _set_status(self, status: str) -> None:
        self._status = status
        self._tell_state()

    def _tell_state(self) -> None:
        self._tell(self.state())

    def _tell_path(self, begin: int) -> None:
        assert self._session is not None
        viewmats = self._session.viewmats
        for viewmat in viewmats[begin:] if viewmats is not None else ():
            camera = np.linalg.inv(viewmat)
            right, ahead = (round(float(camera[axis, 3]), 4) for axis in (0, 2))
            heading = float(np.degrees(np.arctan2(camera[0, 2], camera[2, 2])))
            self._path.append([right, ahead, round(heading, 2)])
        self._tell({"type": "path", "begin": begin, "points": self._path[begin:]})


def recalled(plan: ChunkPlan) -> tuple[int, ...]:
    """Of the frames that a chunk reads, those before the newest that have no gap."""
    newest = min(plan.makes)
    reads = set(plan.reads)
    while newest - 1 in reads:
        newest -= 1
    return tuple(frame for frame in plan.reads if frame < newest)


def _figures(chunk: Chunk) -> dict[str, Any]:
    return {
        "seconds": round(chunk.seconds, 2),
        "chunk_frames": len(chunk.frames),
        "cache_bytes": total(chunk.memory.end_bytes),
        "bf16_bytes": chunk.memory.bf16_end_bytes,
        "reads": len(chunk.plan.reads),
        "recalled": list(recalled(chunk.plan)),
    }


def _without_opposites(keys: Sequence[str]) -> tuple[str, ...]:
    """The two newest keys that do not undo each other."""
    kept: list[str] = []
    for key in reversed(keys):
        if key not in kept and _OPPOSITES.get(key) not in kept:
            kept.append(key)
    return tuple(reversed(kept[:2]))
