package policy

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// services are all that a server may register.
var services = []grpc.ServiceDesc{
	agentv1.Agent_ServiceDesc,
	bundlev1.Bundle_ServiceDesc,
	debugv1.Debug_ServiceDesc,
	entryv1.Entry_ServiceDesc,
	localauthorityv1.LocalAuthority_ServiceDesc,
	loggerv1.Logger_ServiceDesc,
	svidv1.SVID_ServiceDesc,
	trustdomainv1.TrustDomain_ServiceDesc,
	grpc_health_v1.Health_ServiceDesc,
	feedv1.Feed_ServiceDesc,
	operatorv1.Operator_ServiceDesc,
}

func methodsOf(services []grpc.ServiceDesc) []string {
	var out []string
	for _, s := range services {
		for _, m := range s.Methods {
			out = append(out, "/"+s.ServiceName+"/"+m.MethodName)
		}
		for _, m := range s.Streams {
			out = append(out, "/"+s.ServiceName+"/"+m.StreamName)
		}
	}
	slices.Sort(out)
	return out
}

func TestTableHasEveryMethodAndNoOther(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(methodsOf(services), slices.Sorted(maps.Keys(table))); diff != "" {
		t.Errorf("methods of the services, methods of the table (-want +got):\n%s", diff)
	}
}

// expected is the documented list of who may call what, spelled out a second
// time: anyone, agents, downstream, local only; everything else local or admin.
func expected(method string) []string {
	name := method[strings.LastIndexByte(method, '/')+1:]
	service, _, _ := strings.Cut(method[1:], "/")
	switch {
	case strings.HasSuffix(service, ".Debug"), strings.HasSuffix(service, ".Logger"), service == "grpc.health.v1.Health",
		service == "credence.operator.v1.Operator":
		return []string{"local"}
	case service == "credence.feed.v1.Feed":
		return []string{"agent"}
	}
	switch name {
	case "GetBundle", "AttestAgent":
		return []string{"admin", "agent", "anonymous", "downstream", "local"}
	case "RenewAgent", "PostStatus", "GetAuthorizedEntries", "SyncAuthorizedEntries", "BatchNewX509SVID", "NewJWTSVID", "BatchNewWITSVID":
		return []string{"agent"}
	case "GetFederatedBundle":
		return []string{"admin", "agent", "local"}
	case "NewDownstreamX509CA", "PublishJWTAuthority", "PublishWITAuthority":
		return []string{"downstream"}
	}
	return []string{"admin", "local"}
}

var everyRole = map[string]Role{"local": Local, "admin": Admin, "agent": Agent, "downstream": Downstream, "anonymous": 0}

func TestDecideIsTheDocumentedTable(t *testing.T) {
	t.Parallel()
	for _, method := range methodsOf(services) {
		var got []string
		for name, role := range everyRole {
			err := Policy{}.Decide(method, Caller{Roles: role})
			if err == nil {
				got = append(got, name)
				continue
			}
			if denied, ok := errors.AsType[*DeniedError](err); !ok || !errors.Is(err, ErrDenied) || denied.Method != method || denied.Have != role {
				t.Errorf("%s by %s: error is %#v", method, name, err)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(expected(method), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", method, diff)
		}
	}
}

func TestDecideDeniesUnknownMethods(t *testing.T) {
	t.Parallel()
	all := Caller{Roles: Local | Admin | Agent | Downstream}
	for _, method := range []string{
		"", "/", "/spire.api.server.entry.v1.Entry/", "/spire.api.server.entry.v1.Entry/getentry",
		"spire.api.server.entry.v1.Entry/GetEntry", "/spire.api.server.entry.v1.Entry/GetEntry/",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	} {
		if err := (Policy{HealthOnTCP: true}).Decide(method, all); !errors.Is(err, ErrDenied) {
			t.Errorf("Decide(%q): want ErrDenied, got %v", method, err)
		}
	}
}

func TestHealthOnTCP(t *testing.T) {
	t.Parallel()
	method := grpc_health_v1.Health_Check_FullMethodName
	tests := []struct {
		policy Policy
		caller Caller
		want   bool
	}{
		{Policy{}, Caller{}, false},
		{Policy{}, Caller{Roles: Admin | Agent}, false},
		{Policy{}, Caller{Roles: Local}, true},
		{Policy{HealthOnTCP: true}, Caller{}, true},
		{Policy{HealthOnTCP: true}, Caller{Roles: Local}, true},
	}
	for _, tt := range tests {
		if got := tt.policy.Decide(method, tt.caller) == nil; got != tt.want {
			t.Errorf("%+v, caller %s: want %t, got %t", tt.policy, tt.caller.Roles, tt.want, got)
		}
	}
	if err := (Policy{HealthOnTCP: true}).Decide(debugv1.Debug_GetInfo_FullMethodName, Caller{}); err == nil {
		t.Error("HealthOnTCP opens Debug as well")
	}
}

func TestNeedsCaller(t *testing.T) {
	t.Parallel()
	tests := []struct {
		method string
		policy Policy
		want   bool
	}{
		{agentv1.Agent_AttestAgent_FullMethodName, Policy{}, false},
		{bundlev1.Bundle_GetBundle_FullMethodName, Policy{}, false},
		{entryv1.Entry_GetEntry_FullMethodName, Policy{}, true},
		{grpc_health_v1.Health_Check_FullMethodName, Policy{}, true},
		{grpc_health_v1.Health_Check_FullMethodName, Policy{HealthOnTCP: true}, false},
		{"/nobody/Knows", Policy{}, false},
	}
	for _, tt := range tests {
		if got := tt.policy.NeedsCaller(tt.method); got != tt.want {
			t.Errorf("NeedsCaller(%s) with %+v: want %t, got %t", tt.method, tt.policy, tt.want, got)
		}
	}
}

func TestDeniedErrorSaysWho(t *testing.T) {
	t.Parallel()
	err := Policy{}.Decide(entryv1.Entry_GetEntry_FullMethodName, Caller{Roles: Agent | Downstream})
	want := "/spire.api.server.entry.v1.Entry/GetEntry may be called by local or admin, caller is agent and downstream"
	if err == nil || err.Error() != want {
		t.Errorf("want %q, got %v", want, err)
	}
}
