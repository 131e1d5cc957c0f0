"""All that is ASV's: benchmarks, environment, machine entry, dashboard; nothing else knows ASV."""

# What the environment tells the processes it starts, in environment variables.
RESULTS = "STEPBENCH_RESULTS"  # folder of the records
ROUNDS = "STEPBENCH_ROUNDS"
RUN = "STEPBENCH_RUN"  # file that holds the path of the run's file, once a child opened the run
TREE = "STEPBENCH_PROJECT_TREE"  # tree that the measured code has to come from
COMMIT = "STEPBENCH_COMMIT"  # hash of what is measured
REFUSAL = "STEPBENCH_REFUSAL"  # why this commit cannot be measured; unset if it can
