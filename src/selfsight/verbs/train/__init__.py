"""Learn a head from labels: one task a verb."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfsight.verbs.train.classify import classify as classify
    from selfsight.verbs.train.detect import detect as detect
    from selfsight.verbs.train.inspect import inspect as inspect
    from selfsight.verbs.train.segment import segment as segment
