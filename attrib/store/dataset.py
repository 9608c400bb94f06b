"""A collection as a torch Dataset: one prompt's edges as a dict of tensors."""

from torch import Tensor
from torch.utils.data import Dataset

from attrib.core.edges import Value
from attrib.core.types import InputError
from attrib.store.collection import Collection
from attrib.store.layout import Block
from attrib.store.numbers import checked_latents
from attrib.store.select import Latents


class EdgeDataset(Dataset[dict[str, Tensor]]):
    """A block of a collection; item i is the prompt of the i-th number, read when it is asked for.

    An item holds `number` [], `ids` [tokens]; `source_position`, `source_latent`, `source_activation` [sources]; the same of
    `target` [targets], and its `total` and `l1` [targets]; the CSR matrix `indptr` [targets + 1], `indices` [edges]; and
    `gradient` and `attribution` [edges], or one of them where `value` names it. Prompts differ in size: let a DataLoader give
    them one by one (`batch_size=None`) or in lists (`collate_fn=list`). Each of its workers opens its own files.
    """

    def __init__(
        self,
        collection: Collection,
        block: Block,
        value: Value | None = None,
        source_latents: Latents = None,
        target_latents: Latents = None,
    ) -> None:
        if value not in (None, "gradient", "attribution"):
            raise InputError(f"value: {value!r}; expected 'gradient', 'attribution', or None for both.")
        self.collection, self.block, self.value = collection, block, value
        self.source_latents = checked_latents("source_latents", source_latents)
        self.target_latents = checked_latents("target_latents", target_latents)
        self.numbers = collection.numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        if not -len(self) <= item < len(self):
            raise IndexError(f"item: {item} is outside the {len(self)} prompts of {self.collection.path}.")
        asked, ends_of = int(self.numbers[item]), {"source_latents": self.source_latents, "target_latents": self.target_latents}
        edges = self.collection.edges(self.block.kind, self.block.source, self.block.target, asked, **ends_of)
        ends = {"source": edges.sources, "target": edges.targets}
        nodes = {f"{end}_{name}": getattr(table, name) for end, table in ends.items() for name in ("position", "latent", "activation")}
        values = {name: edges.values(name) for name in ("gradient", "attribution") if self.value in (None, name)}
        matrix = {"indptr": edges.indptr, "indices": edges.indices, "total": edges.total, "l1": edges.l1}
        return {"number": self.numbers[item], "ids": edges.prompts.ids, **nodes, **matrix, **values}
