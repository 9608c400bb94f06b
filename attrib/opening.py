"""What it takes to open a path, beside its sweeps: the prompt's own pass, the encoders, the directions at both ends.

The counts are those of paths.py, cuts.py and replacement.py, step by step; operations as in cost.py, memory as in memory.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from attrib.between import Effect, station
from attrib.cost import Cost
from attrib.dictionary import TILE, Dictionary
from attrib.model import width
from attrib.reading import Positions
from attrib.task import Task
from attrib.types import Logits, Site, Tokens, TopLogits


@dataclass(frozen=True)
class Opening:
    """A prompt's path, before it is there."""

    task: Task
    source: Dictionary | None
    target: Dictionary | Logits
    cuts: Sequence[Dictionary]
    effect: Effect
    error: bool
    positions: Positions

    @property
    def tokens(self) -> int:
        """Positions of the prompt."""
        return self.task.tokens

    @property
    def put_in(self) -> list[Dictionary]:
        """The dictionaries of the replaced pass, where there is one."""
        return [d for d in (self.source, *self.cuts) if d is not None] if self.cuts or len(self.task.writes) > 1 else []

    @property
    def is_again(self) -> bool:
        """Whether the primal is not the model's own pass, but that of the source's reconstruction."""
        return not self.error and self.source is not None

    @property
    def read_at(self) -> int:
        """Positions at which logits are read."""
        return sum(rows > 0 for rows in self.task.targets[0])

    # ------------------------------------------------------------------------------- operations

    def cost(self) -> Cost:
        """Its products."""
        task = self.task
        cost = Cost(task.itemsize)
        # for their errors, all places are looked at that dictionaries write
        seen = [task.stop, *(at for d in self.put_in if self.is_again for at in d.writes)]
        self._model(cost, Site(0, "resid_pre"), max(seen, key=lambda site: site.depth))
        passed = [
            cut for cut in self.cuts if any(passed.reads == station(cut.site) and sum(map(sum, passed.terms)) for passed in task.passed)
        ]
        for dictionary in (self.source, self.target, *passed):
            if isinstance(dictionary, Dictionary):
                self._encoder(cost, dictionary)
        if isinstance(self.target, TopLogits | Tokens):
            cost.mm("capture", self.read_at, task.config.d_model, task.config.d_vocab)
        if not self.is_again:
            return cost
        if not self.put_in:
            assert self.source is not None
            self._skips(cost, [self.source] * 2)  # once for the error, once for what is written
            self._model(cost, task.start, task.stop)
            return cost
        self._model(cost, Site(0, "resid_pre"), task.stop)
        for dictionary in self.put_in:
            self._encoder(cost, dictionary)
        self._skips(cost, self.put_in)  # for the errors
        met = [d for d in self.put_in if d.site.depth < task.stop.depth]
        self._skips(cost, met)
        if self.effect == "total":
            for dictionary in met:
                if dictionary is not self.source:
                    self._encoder(cost, dictionary)
        return cost

    def _model(self, cost: Cost, start: Site, stop: Site) -> None:
        """The blocks from a site to another."""
        c, tokens = self.task.config, self.tokens
        d, d_kv, d_q = c.d_model, c.n_kv_heads * c.d_head, self.task.d_q
        mixes = stop.layer + (stop.kind != "resid_pre") - start.layer - (start.kind not in ("resid_pre", "z"))
        scores = mixes - (start.kind == "z")
        cost.mm("capture", tokens, d, d_q + 2 * d_kv, batch=scores)
        cost.mm("capture", tokens, d_q, d, batch=mixes - (stop.kind == "z"))
        cost.mm("capture", tokens, c.d_head, tokens, batch=2 * c.n_heads * scores)
        mlps = stop.layer + (stop.kind in ("mlp_out", "resid_post")) - start.layer - (start.kind in ("mlp_out", "resid_post"))
        cost.mm("capture", tokens, d, self.task.d_hidden, batch=mlps)
        cost.mm("capture", tokens, c.d_mlp, d, batch=mlps)

    def _encoder(self, cost: Cost, dictionary: Dictionary) -> None:
        cost.mm("capture", self.tokens, dictionary.d_in, dictionary.d_sae)

    def _skips(self, cost: Cost, dictionaries: Sequence[Dictionary]) -> None:
        for dictionary in dictionaries:
            if dictionary.has_skip:
                cost.mm("capture", self.tokens, dictionary.d_in, dictionary.d_out)

    # ----------------------------------------------------------------------------------- memory

    @property
    def held(self) -> int:
        """Bytes of the path when it is there: the streams, and the rows at both ends."""
        return self.task.itemsize * (self._streams + self._rows_above + self._rows_below)

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment until then."""
        task, c, tokens = self.task, self.task.config, self.tokens
        dictionaries = [d for d in (self.source, self.target, *self.cuts) if isinstance(d, Dictionary)]
        model = max(3 * c.n_heads * tokens**2, 2 * tokens * (task.d_hidden + c.d_mlp), 6 * tokens * task.d_q)
        encoding = max((self._encoding(d) for d in dictionaries), default=0)
        below, streams = self._rows_below, self._streams
        directions = 2 if len(task.writes) > 1 else 1  # side by side, from those of each place
        steps = [model, encoding, below * directions, below + self._reading]
        if self.is_again:
            assert self.source is not None
            written = self.put_in or [self.source]
            decoding = max(2 * d.d_out * min(TILE, tokens * d.d_sae) + 3 * tokens * d.d_out for d in written)
            errors = sum(2 * tokens * d.d_out for d in written)
            again = max(model, encoding, decoding, *(4 * d_in * n for d_in, n in self._terms), 0)
            steps.append(below + streams + errors + again)
        return task.itemsize * (streams + max(steps))

    @property
    def _streams(self) -> int:
        """What is kept of the prompt's own pass, and what stands at the sites beside it."""
        c, layers = self.task.config, self.task.stop.layer - self.task.start.layer + 1
        return self.tokens * (c.d_model * (3 * layers + 3) + max(c.d_model, self.task.d_q))

    @property
    def _rows_below(self) -> int:
        """The sources' directions, at every place that they write."""
        return self.task.n_sources * sum(width(self.task.config, at) for at in self.task.writes or (self.task.start,))

    @property
    def _rows_above(self) -> int:
        return self.task.n_targets * width(self.task.config, self.task.stop)

    @property
    def _reading(self) -> int:
        """The targets' cotangents, by the derivative of what is read: its rows, its columns twice, and what it gives."""
        logits = 3 * self.read_at * self.task.config.d_vocab if isinstance(self.target, TopLogits | Tokens) else 0
        return max(logits, 6 * self._rows_above)

    @property
    def _terms(self) -> list[tuple[int, int]]:
        """Of each dictionary that derivatives pass through the latents of, what it reads and how many are active."""
        return [(passed.d_in, sum(map(sum, passed.terms))) for passed in self.task.passed]

    def _encoding(self, dictionary: Dictionary) -> int:
        """Some columns at a time: pre-activations, and what is chosen among them."""
        return self.tokens * (4 * min(TILE, dictionary.d_sae) + 2 * dictionary.d_in)
