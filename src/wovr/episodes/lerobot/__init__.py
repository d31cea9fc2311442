"""LeRobot datasets <-> episodes. Importing this package loads pyarrow and av; nothing else of wovr needs them."""

from wovr.core.errors import UserError

try:
    import av as _av  # noqa: F401
    import pyarrow.parquet as _parquet  # noqa: F401
except ImportError as error:
    raise UserError(
        f"LeRobot datasets: expected pyarrow and av (pip install 'wovr[lerobot]'), found {' '.join(str(error).split())}"
    ) from None

from wovr.episodes.lerobot.layout import DatasetInfo, load_info
from wovr.episodes.lerobot.read import read_lerobot
from wovr.episodes.lerobot.write import write_lerobot

__all__ = ["DatasetInfo", "load_info", "read_lerobot", "write_lerobot"]
