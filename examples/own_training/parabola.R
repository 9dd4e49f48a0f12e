# Arguments are params; what goes on and the result are lines of JSON on standard output.
given <- as.numeric(commandArgs(trailingOnly = TRUE))
value <- (given[1] - 1)^2 + (given[2] + 2)^2
for (step in 1:3) {
  cat(sprintf('{"step": %d, "value": %.9g}\n', step, value + 1 / step))
  flush(stdout()) # else a pruner hears of it at the end only
}
cat(sprintf('{"value": %.9g}\n', value))
