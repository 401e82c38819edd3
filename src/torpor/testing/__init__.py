"""What users and torpor itself test with: conformance suites, clocks, servers, waiting."""
