"""The protocol: scheduler, server and worker as pure state machines, and what they are made of."""
