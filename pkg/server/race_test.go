//go:build race

package server

// raceSlack is how much longer things take with the race detector, beside other
// tests.
const raceSlack = 10
