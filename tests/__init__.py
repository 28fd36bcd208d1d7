"""The tests of tinyjax, laid out as the library is."""
