"""The job: keeps one run alive, attempt after attempt, until it is done or cannot go on here."""
