"""Where a training stands, on disk: sae-lens' own state of weights and trainer, in a folder that is there whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

from attrib.training.folders import whole_folder


def save_checkpoint(trainer: Any, folder: Path) -> None:
    """Save where a trainer stands after its steps so far, and remove what was saved before."""
    older = _found(folder)
    with whole_folder(folder / str(trainer.n_training_steps)) as partial:
        trainer.sae.save_model(partial)
        trainer.save_trainer_state(partial)
    for old in older:
        shutil.rmtree(old)


def load_checkpoint(trainer: Any, folder: Path) -> int:
    """Bring a trainer to where the newest checkpoint stands, if there is one; how many steps are done by then."""
    found = _found(folder)
    if not found:
        return 0
    trainer.sae.load_weights_from_checkpoint(found[-1])
    trainer.load_trainer_state(found[-1])
    return int(trainer.n_training_steps)


def _found(folder: Path) -> list[Path]:
    """All whole checkpoints, the oldest first."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
