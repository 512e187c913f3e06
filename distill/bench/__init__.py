"""Speed and memory of teacher, student, data loading and label store."""
