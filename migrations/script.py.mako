"""${message}

Carries its own frozen tables: it must keep doing what it does when the package's have moved on.
A batch operation drops the views first and makes them again, and needs
``table_kwargs={"sqlite_autoincrement": True}`` where the table has it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
