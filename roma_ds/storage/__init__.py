"""Files that are whole or absent, fingerprints of what they were made from, and the record of each stage."""
