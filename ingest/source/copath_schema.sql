-- The CoPath-like tables that the `copath` preset reads: the columns it needs, not the whole system.
-- Every identifier is text. The types are understood by SQLite, PostgreSQL and SQL Server alike.
-- The presets' queries (presets/copath.toml), the demo's LIS and the tests share this file.
-- Traps that are kept on purpose: c_specimen is the CASE; one patient has several MRNs, one per facility (r_medrec);
-- block_inst is reassigned when a cassette is deleted (match on blkdesig_label too); addenda are p_special_proc rows
-- whose text hangs on link_inst = sp_inst.

CREATE TABLE r_pat_demograph (
    patdemog_id VARCHAR(20) NOT NULL PRIMARY KEY,
    universal_mednum_stripped VARCHAR(20),     -- enterprise number (EMPI), null for old patients
    name VARCHAR(80),                          -- never read by the presets
    birth_date VARCHAR(10)                     -- never read by the presets; 1950-12-31
);

CREATE TABLE r_medrec (
    patdemog_id VARCHAR(20) NOT NULL,
    client_id VARCHAR(20) NOT NULL,            -- the facility that issued the number
    medrec_num_stripped VARCHAR(20) NOT NULL
);

CREATE TABLE merged_patients (
    old_patdemog_id VARCHAR(20) NOT NULL,
    new_patdemog_id VARCHAR(20) NOT NULL
);

CREATE TABLE c_specimen (
    specimen_id VARCHAR(20) NOT NULL PRIMARY KEY,
    specnum_formatted VARCHAR(30) NOT NULL,    -- the accession, S23-12345
    specclass_id VARCHAR(10),                  -- S surgical, C cytology, N consult, A autopsy
    patdemog_id VARCHAR(20),
    client_id VARCHAR(20),
    accession_date VARCHAR(19),                -- 2023-04-05 10:11:12
    signout_date VARCHAR(19)                   -- null until signed out: the report is preliminary
);

CREATE TABLE p_part (
    specimen_id VARCHAR(20) NOT NULL,
    part_inst VARCHAR(10) NOT NULL,            -- 1, 2, 3: order of the parts
    part_designator VARCHAR(10),               -- A, B, C as printed in the report
    parttype_id VARCHAR(60),                   -- BREAST; CORE BIOPSY
    part_description VARCHAR(255),
    PRIMARY KEY (specimen_id, part_inst)
);

CREATE TABLE p_block (
    specimen_id VARCHAR(20) NOT NULL,
    part_inst VARCHAR(10) NOT NULL,
    block_inst VARCHAR(10) NOT NULL,
    blkdesig_label VARCHAR(20)                 -- A1, as written on the cassette
);

CREATE TABLE p_stainprocess (
    specimen_id VARCHAR(20) NOT NULL,
    part_inst VARCHAR(10) NOT NULL,
    block_inst VARCHAR(10),                    -- null: a slide without a block (touch preparation, cytology)
    stain_inst VARCHAR(10) NOT NULL,
    stainprocess_id VARCHAR(20),               -- HE, IHC, FS, SPEC
    stain_name VARCHAR(60),                    -- H&E, H&E FROZEN, ER, CK5/6
    slide_barcode VARCHAR(60)                  -- S23-12345;A1;HE;1
);

CREATE TABLE c_spec_text (
    specimen_id VARCHAR(20) NOT NULL,
    texttype_id VARCHAR(20) NOT NULL,          -- $final, $gross, $micro, $clin, $dxcom, $procint, $procres
    link_inst VARCHAR(10),                     -- 0: the case itself; otherwise sp_inst of the addendum
    text_data TEXT                             -- plain text or RTF
);

CREATE TABLE p_special_proc (
    specimen_id VARCHAR(20) NOT NULL,
    sp_inst VARCHAR(10) NOT NULL,
    sprotype_id VARCHAR(20),                   -- ADD addendum, AMD amended, COR corrected, PRELIM preliminary
    signout_date VARCHAR(19)
);

CREATE TABLE scanned_slides (
    image_id VARCHAR(40) NOT NULL,             -- of the scan; one barcode may be scanned twice
    slide_barcode VARCHAR(60),
    file_name VARCHAR(255),                    -- relative to the slide folder
    scanner_model VARCHAR(40),
    magnification VARCHAR(10),                 -- 20x, 40x
    scanned_at VARCHAR(19)
);
