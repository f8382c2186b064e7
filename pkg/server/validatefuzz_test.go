package server

import (
	"os"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/config"
)

// FuzzValidate takes a whole configuration file. Whatever is in it, every
// problem says where it is, and all of them are said the same twice.
func FuzzValidate(f *testing.F) {
	for _, name := range []string{"../../conf/server/server_full.conf", "testdata/chart.json"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(strings.ToLower(string(data)), "plugin_data_file") {
			return // names any file of this machine
		}
		file, err := config.Parse("fuzz", data)
		if err != nil {
			return
		}
		c := &Config{file: file}
		c.unread = file.Decode(c)
		err = c.Validate()
		if err == nil {
			return
		}
		if again := c.Validate(); again.Error() != err.Error() {
			t.Errorf("it says\n%v\nand then\n%v", err, again)
		}
		for _, problem := range err.(interface{ Unwrap() []error }).Unwrap() {
			if !strings.HasPrefix(problem.Error(), "fuzz") {
				t.Errorf("%q does not say where it is", problem)
			}
		}
	})
}
