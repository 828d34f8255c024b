"""The paper's evaluation: the data sets' layout, features, tasks, results, and the commands that run them."""
