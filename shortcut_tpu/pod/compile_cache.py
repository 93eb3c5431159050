"""Keeps compiled programs between runs, so that a restart does not compile again.

Usage:
  compile_cache.enable(config.train.compile_cache)     # before anything is compiled
"""

from etils import epath
import jax

from data_pipeline.atomic_files import failures
from data_pipeline.errors import UserError


def enable(folder: str) -> None:
    """JAX keeps compiled programs in this folder, local or gs://, and looks there first; "" for no.

    An entry is found again by the program, the compiler's version and flags and the devices, so one
    folder may serve many runs and versions.

    Raises:
      UserError: the folder cannot be made.
    """
    if not folder:
        return
    try:
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
    except failures() as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"train.compile_cache={folder}: {reason}") from None
    jax.config.update("jax_compilation_cache_dir", folder)
    # What takes less time to compile than to fetch is not worth a file.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
