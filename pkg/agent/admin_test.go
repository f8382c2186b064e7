package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
)

func TestAdminSocketIsApart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, public, admin string
		ok                  bool
	}{
		{"none", "/run/x/public/api.sock", "", true},
		{"beside", "/run/x/public/api.sock", "/run/x/private/admin.sock", true},
		{"above", "/run/x/public/api.sock", "/run/x/admin.sock", true},
		{"a name that begins alike", "/run/x/public/api.sock", "/run/x/public2/admin.sock", true},
		{"the same directory", "/run/x/public/api.sock", "/run/x/public/admin.sock", false},
		{"below", "/run/x/public/api.sock", "/run/x/public/private/admin.sock", false},
		{"the same socket", "/run/x/public/api.sock", "/run/x/public/api.sock", false},
		{"not as it is written", "/run/x/public/api.sock", "/run/x/private/../public/admin.sock", false},
		{"relative", "public/api.sock", "./public/admin.sock", false},
		{"everything is below the root", "/api.sock", "/run/admin.sock", false},
	}
	for _, test := range tests {
		s := Section{SocketPath: test.public, AdminSocketPath: test.admin}
		err := s.checkAdminSocket()
		if (err == nil) != test.ok {
			t.Errorf("%s: %v, want ok %v", test.name, err, test.ok)
		}
		c := Config{Agent: s}
		if refused := strings.Contains(c.Validate().Error(), "agent.admin_socket_path"); refused == test.ok {
			t.Errorf("%s: validation names the key: %v", test.name, refused)
		}
	}
}

// TestLastSync: while the server pushes, what it has comes by itself; else the
// agent knows of the time it was last told.
func TestLastSync(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	before := now.Add(-time.Minute)
	tests := []struct {
		name              string
		synced            bool // a minute ago
		pushed, connected bool
		want              time.Time
	}{
		{"never", false, true, false, time.Time{}},
		{"on the push stream", true, true, true, now},
		{"stream lost", true, true, false, before},
		{"polling", true, false, true, before},
		{"polling, server lost", true, false, false, before},
	}
	for _, test := range tests {
		a := new(Agent)
		if test.synced {
			a.syncing(before)
		}
		a.pushed.Store(test.pushed)
		a.connected.Store(test.connected)
		if got := a.lastSync(now); !got.Equal(test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestAdminAPIWantsTheLog: an assembly that forgets what the admin API shows is
// an error, not a panic at the first call.
func TestAdminAPIWantsTheLog(t *testing.T) {
	t.Parallel()
	a := &Agent{config: &Config{Agent: Section{AdminSocketPath: "/run/x/admin.sock"}}}
	if err := a.newAdmin(Options{}); err == nil {
		t.Error("an admin API without a log was made")
	}
	log, err := telemetry.NewLog(telemetry.LogConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.newAdmin(Options{Log: log.Logger(), LogLevel: log}); err != nil || a.admin == nil {
		t.Errorf("%v, %v", a.admin, err)
	}
}
