"""From a quantized network to a file, and from that file to an engine."""

from bevquant.deploy.engines import Engine, open_engine
from bevquant.deploy.lint import Verdict, lint
from bevquant.deploy.runtime import Answer, Deployed, load

__all__ = ["Answer", "Deployed", "Engine", "Verdict", "lint", "load", "open_engine"]
