package config_test

import (
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/config"
)

func ExampleFile_Decode() {
	file, err := config.Parse("server.conf", []byte(`
server {
	trust_domain = "example.org"
	ca_tll = "24h"
}
plugins {
	KeyManager "memory" {}
}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	var conf struct {
		Server struct {
			TrustDomain string        `hcl:"trust_domain"`
			CATTL       time.Duration `hcl:"ca_ttl"`
		} `hcl:"server"`
		Plugins config.Plugins `hcl:"plugins"`
	}
	fmt.Println(file.Decode(&conf))
	fmt.Println(conf.Server.TrustDomain, conf.Plugins.OfType("KeyManager")[0].Name)
	// Output:
	// server.conf:4: server.ca_tll: unknown key; did you mean "ca_ttl"?
	// example.org memory
}
