"""The worker: a loop that asks for trials, trains them and tells the result. It knows the domain and the client."""
