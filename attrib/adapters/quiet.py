"""Other libraries' progress bars, off while attrib loads: they have no place in a log, nor beside attrib's own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the bars of transformers and of the hub's client, which are afterwards as they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    has_bars, has_hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # the hub's with them
    try:
        yield
    finally:
        if has_bars:
            logging.enable_progress_bar()  # the hub's with them
        if has_hub_bars and not has_bars:
            enable_progress_bars()
        if has_bars and not has_hub_bars:
            disable_progress_bars()
