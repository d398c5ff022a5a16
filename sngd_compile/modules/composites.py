"""Layers whose one call uses several weights; importing this package registers them all."""

from sngd_compile.modules import attention, recurrent
from sngd_compile.modules.members import Members, members_of, register_members

__all__ = ["Members", "attention", "members_of", "recurrent", "register_members"]
