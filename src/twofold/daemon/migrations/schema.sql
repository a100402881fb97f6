-- What all migrations together make; a new database starts here. A test compares the two.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE instances (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE,
    spec          TEXT NOT NULL,
    image_digest  TEXT NOT NULL,
    id_base       INTEGER NOT NULL UNIQUE,
    address       TEXT UNIQUE,
    mac           TEXT UNIQUE,
    state         TEXT NOT NULL,
    intent        TEXT NOT NULL,
    exit_code     INTEGER,
    error         TEXT,
    created_at    TEXT NOT NULL,
    started_at    TEXT,
    finished_at   TEXT,
    pid           INTEGER,
    oom_killed    INTEGER NOT NULL DEFAULT 0,
    restart_count INTEGER NOT NULL DEFAULT 0,
    ready_seconds REAL,
    warnings      TEXT NOT NULL DEFAULT '[]',
    facts         TEXT NOT NULL DEFAULT '{}',
    network       TEXT
) STRICT;
