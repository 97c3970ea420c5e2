"""Handwritten gradients checked against differences and complex steps.

The package is the function `audit` too, since `tinygrok.audit` names both:

>>> import tinygrok.audit
>>> rows = tinygrok.audit(tinygrok.audit.cases("softmax")[0])
>>> all(row.passed for row in rows)
True
"""

import sys
from types import ModuleType

from .case import Case
from .cases import cases
from .checker import audit, table

__all__ = ["Case", "audit", "cases", "table"]


class _Audit(ModuleType):
    """A module that can be called; Python keeps one object by the name tinygrok.audit."""

    def __call__(self, case: Case, seed: int = 0):
        return audit(case, seed)


sys.modules[__name__].__class__ = _Audit
