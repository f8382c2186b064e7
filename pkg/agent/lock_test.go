package agent

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestDataDirHasOneAgent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockFile)
	unlock, err := lockDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDataDir(path); err == nil || !strings.HasPrefix(err.Error(), "agent.data_dir: another agent is using it") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a second agent: %v, want one line with the key and the next step", err)
	}
	unlock()
	again, err := lockDataDir(path)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again()
}
