package server

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
)

// TestMain fails when a stopped server has left a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(kubetest.Tests{M: m}) }
