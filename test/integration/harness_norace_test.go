//go:build !race

package integration

// raceEnabled makes the programs under test like the test itself.
const raceEnabled = false
