"""${message}

Carries its own frozen tables: it must keep doing what it does when the package's have moved on.
A batch operation drops the views first and makes them again, needs
``table_kwargs={"sqlite_autoincrement": True}`` where the table has it, and then puts its row of
``sqlite_sequence`` back. ``op.add_column`` and ``op.drop_column`` need nothing of the kind.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    raise CommandError("there is no way back; restore the copy that was made before the upgrade")
