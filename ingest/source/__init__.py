"""Where records come from: SQL databases, table files and HL7 v2 messages, all read into the same canonical tables."""
