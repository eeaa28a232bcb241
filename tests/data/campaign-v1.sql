BEGIN TRANSACTION;
CREATE TABLE answers (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	"row" BIGINT NOT NULL, 
	record_id TEXT NOT NULL, 
	annotator TEXT NOT NULL, 
	status TEXT NOT NULL, 
	label INTEGER, 
	round INTEGER, 
	source TEXT NOT NULL, 
	answered_at TEXT NOT NULL, 
	CHECK ((status = 'submitted' and label is not null) or (status = 'skipped' and label is null)), 
	FOREIGN KEY(round) REFERENCES rounds (number)
);
INSERT INTO "answers" VALUES(1,907,'id907','ann','submitted',1,1,'web','2026-11-25T03:29:44.638954+00:00');
INSERT INTO "answers" VALUES(2,23,'id23','ann','submitted',2,1,'web','2026-11-25T03:29:44.638954+00:00');
INSERT INTO "answers" VALUES(3,511,'id511','ann','submitted',1,1,'web','2026-11-25T03:29:44.638954+00:00');
INSERT INTO "answers" VALUES(4,40,'id40','bob','skipped',NULL,1,'web','2026-11-25T03:29:44.707317+00:00');
INSERT INTO "answers" VALUES(5,777,'id777','ann','submitted',1,NULL,'web','2026-11-25T03:29:44.707317+00:00');
INSERT INTO "answers" VALUES(6,5,'id5','ann','submitted',1,2,'file:batch-0002.csv','2026-11-25T03:29:44.950347+00:00');
CREATE TABLE asked (
	"row" BIGINT NOT NULL, 
	record_id TEXT NOT NULL, 
	round INTEGER NOT NULL, 
	rank INTEGER NOT NULL, 
	score FLOAT, 
	predicted INTEGER, 
	explore BOOLEAN NOT NULL, 
	PRIMARY KEY ("row"), 
	FOREIGN KEY(round) REFERENCES rounds (number)
);
INSERT INTO "asked" VALUES(907,'id907',1,0,4.0,0,0);
INSERT INTO "asked" VALUES(23,'id23',1,1,3.0,0,0);
INSERT INTO "asked" VALUES(511,'id511',1,2,2.0,0,0);
INSERT INTO "asked" VALUES(40,'id40',1,3,1.0,0,1);
INSERT INTO "asked" VALUES(5,'id5',2,0,3.0,0,0);
INSERT INTO "asked" VALUES(6,'id6',2,1,2.0,0,0);
INSERT INTO "asked" VALUES(7,'id7',2,2,1.0,0,1);
CREATE TABLE campaign (
	schema_version INTEGER NOT NULL, 
	id TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	pool_fingerprint TEXT NOT NULL, 
	n_rows BIGINT NOT NULL, 
	classes TEXT NOT NULL
);
INSERT INTO "campaign" VALUES(1,'97cfd465d2476e53','2026-11-25T03:29:44.498732+00:00','f00d',1000,'["cat", "dog", "owl"]');
CREATE TABLE exports (
	id INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	last_answer BIGINT NOT NULL, 
	exported_at TEXT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(round) REFERENCES rounds (number)
);
INSERT INTO "exports" VALUES(1,2,'batch-0002.csv','abc',6,'2026-11-25T03:29:44.925710+00:00');
CREATE TABLE imports (
	id INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	annotator TEXT NOT NULL, 
	source TEXT NOT NULL, 
	imported_at TEXT NOT NULL, 
	new BIGINT NOT NULL, 
	changed BIGINT NOT NULL, 
	same BIGINT NOT NULL, 
	volunteered BIGINT NOT NULL, 
	conflicts BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "imports" VALUES(1,'d1','ann','file:batch-0002.csv','2026-11-25T03:29:44.974401+00:00',1,0,0,0,0);
CREATE TABLE rounds (
	number INTEGER NOT NULL, 
	status TEXT NOT NULL, 
	pool_fingerprint TEXT NOT NULL, 
	n_rows BIGINT NOT NULL, 
	k INTEGER NOT NULL, 
	explore FLOAT NOT NULL, 
	seed BIGINT NOT NULL, 
	strategy TEXT NOT NULL, 
	last_answer BIGINT NOT NULL, 
	labels BIGINT NOT NULL, 
	excluded BIGINT NOT NULL, 
	excluded_digest TEXT NOT NULL, 
	parent_model TEXT, 
	frozen_at TEXT NOT NULL, 
	model TEXT, 
	trained_on BIGINT, 
	notes TEXT, 
	candidates TEXT, 
	summary TEXT, 
	opened_at TEXT, 
	closed_at TEXT, 
	PRIMARY KEY (number), 
	CHECK (status in ('frozen', 'fitted', 'scanned', 'open', 'closed'))
);
INSERT INTO "rounds" VALUES(1,'closed','f00d',1000,4,0.25,11,'margin',0,0,0,'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',NULL,'2026-11-25T03:29:44.568816+00:00',NULL,NULL,NULL,NULL,NULL,'2026-11-25T03:29:44.599464+00:00','2026-11-25T03:29:44.745934+00:00');
INSERT INTO "rounds" VALUES(2,'open','f00d',1000,4,0.25,11,'margin',5,4,5,'61b347e943ea3853bd4d0aeec900a5cf3c49e7aa13825cda51c1cccb2d02679f',NULL,'2026-11-25T03:29:44.783162+00:00','97ff8a35544dcf40ad84047074439dd6aa3a0be469ea578a1b1c017d939ec61c',4,'{}','ba159dbf9d2f740f56bc2ea7245187ee726da4263440b055ceb89485f4dbcf38','{"rows": 1000}','2026-11-25T03:29:44.890103+00:00',NULL);
CREATE INDEX ix_imports_digest ON imports (digest);
CREATE UNIQUE INDEX asked_by_rank ON asked (round, rank);
CREATE INDEX answers_by_annotator ON answers ("row", annotator, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('answers',6);
COMMIT;
