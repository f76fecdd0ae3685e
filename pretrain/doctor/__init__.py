"""What is installed, what this machine has, and what to fix before a week of training: `python -m pretrain doctor`.

Every check tries the thing itself (imports the module, opens a process group, writes a slide and reads it back) and answers with
findings; a missing module is a finding, too. The modules here import only the standard library, so that they run where others fail.
"""
