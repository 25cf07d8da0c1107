"""The HTTP application as a Ray Serve deployment: every replica holds the bundle and answers in batches of its own.

    serve run earn.serve.ray_app:deployment place=/shared/movies-bundle max_replicas=8

`deployment` is the builder that Ray Serve calls with `Settings`, from its command line or from `args` of a YAML file. A
replica is one process, in which all is as in `earn serve` (earn.serve.app) but for this: there are no sessions and no
swaps, for Ray sends each request to any replica, and these live in one. A new bundle is rolled out by deploying again.
"""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from earn.errors import EarnError, to_install
from earn.serve.app import create_app
from earn.serve.bundles import ServedBundle
from earn.serve.limits import Limits
from earn.serve.service import Service

try:
    from ray import serve
except ImportError as error:
    raise EarnError(f"This deployment needs Ray Serve. Install it: {to_install('ray-serve')}") from error


class Settings(BaseModel):
    """What a deployment serves, and how far it grows."""

    model_config = ConfigDict(extra="forbid")

    place: str  # of the bundle: a path that every node sees, its one file, or hf://org/name@revision
    engine: str = "cpu"
    threads: int = Field(default=1, ge=1)  # of a request, and the CPUs that a replica takes of its node
    gpus: float = Field(default=0, ge=0)  # that a replica takes of its node
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=4, ge=1)
    limits: Limits = Limits()  # of each replica


def application(settings: Settings) -> FastAPI:
    """What one replica answers with.

    Raises:
        EarnError: the bundle cannot be loaded, or gives no list.
    """
    bundle = ServedBundle.at(settings.place, settings.engine, settings.threads)
    service = Service([bundle], settings.limits)
    return create_app(service, hosts=["*"], keeps_state=False)  # hosts: Ray's proxy, or what stands before it


def deployment(settings: Settings) -> serve.Application:
    """The application that Ray Serve runs.

    The number of replicas follows the load: Ray adds some where each has more than a full batch to answer, and removes
    some where each has less.
    """
    limits = settings.limits

    def build() -> FastAPI:  # called in each replica
        return application(settings)

    replica = serve.deployment(
        serve.ingress(build)(),
        name="earn",
        max_ongoing_requests=limits.concurrent,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": limits.batch,
        },
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": settings.gpus},
    )
    return replica.bind()
