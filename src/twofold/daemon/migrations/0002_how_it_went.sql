-- What `twofold show` tells about a run besides its state.
ALTER TABLE instances ADD COLUMN pid INTEGER;
ALTER TABLE instances ADD COLUMN oom_killed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN restart_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN ready_seconds REAL;
ALTER TABLE instances ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]';
ALTER TABLE instances ADD COLUMN facts TEXT NOT NULL DEFAULT '{}';
-- The whole plug (link, prefix, gateway): address and mac alone would have to be completed by guessing.
ALTER TABLE instances ADD COLUMN network TEXT;
