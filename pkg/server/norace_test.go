//go:build !race

package server

// raceSlack is 1 without the race detector.
const raceSlack = 1
