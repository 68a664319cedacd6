"""From a prepared run to a submitted one: run folder, record, snapshot, job."""
