"""Who encodes: this process, or a cluster."""

import contextlib
from collections.abc import Iterator

from pipeline.features.cache import FeatureCache
from pipeline.features.encode import Encoder
from pipeline.features.extract import Engine
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams


@contextlib.contextmanager
def make_engine(params: FeaturesParams, teacher: Teacher, cache: FeatureCache) -> Iterator[Engine]:
    """The engine that `params.engine` names, for as long as the block runs.

    Raises:
        ParamsError: ray is asked for and not installed.
        ResourceError: the cluster cannot be reached.
    """
    if params.engine == "local":
        yield Encoder(teacher, cache, params)
        return
    from pipeline.features.cluster import ray_engine

    with ray_engine(params, teacher, cache) as engine:
        yield engine
