package server

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/publish"
	"github.com/credence-id/credence/pkg/publish/k8sbundle"
	"github.com/credence-id/credence/pkg/publish/k8sconfigmap"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/agentapi"
	"github.com/credence-id/credence/pkg/server/authorityapi"
	"github.com/credence-id/credence/pkg/server/bundleapi"
	"github.com/credence-id/credence/pkg/server/debugapi"
	"github.com/credence-id/credence/pkg/server/entryapi"
	"github.com/credence-id/credence/pkg/server/feedapi"
	"github.com/credence-id/credence/pkg/server/healthapi"
	"github.com/credence-id/credence/pkg/server/loggerapi"
	"github.com/credence-id/credence/pkg/server/operatorapi"
	"github.com/credence-id/credence/pkg/server/svidapi"
	"github.com/credence-id/credence/pkg/server/trustdomainapi"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/telemetry"
)

// What a configured name stands for is said here and nowhere else.
var (
	dataStores = map[string]func(config.Plugin, Settings, *choice) (openStore, error){
		"bolt": chooseBolt,
		"etcd": chooseEtcd,
		"sql":  chooseSQL,
	}
	keyManagers = map[string]func(config.Plugin, Settings, *choice) (openKeys, error){
		"disk":   chooseDisk,
		"memory": chooseMemory,
	}
	nodeAttestors = map[string]func(config.Plugin, *choice) (openVerifier, error){
		jointoken.Name: chooseJoinToken,
		k8spsat.Name:   chooseK8sPSAT,
		x509pop.Name:   chooseX509POP,
	}
	publishers = map[string]map[string]choosePublisher{
		typeBundlePublisher: {k8sconfigmap.Name: publisherOf[k8sconfigmap.Config]},
		typeNotifier:        {k8sbundle.Name: publisherOf[k8sbundle.Config]},
	}
)

// builtins are the names of the maps above, for the check of the section
// plugins.
func builtins() map[string][]string {
	names := map[string][]string{typeDataStore: nil, typeKeyManager: nil, typeNodeAttestor: nil}
	for name := range dataStores {
		names[typeDataStore] = append(names[typeDataStore], name)
	}
	for name := range keyManagers {
		names[typeKeyManager] = append(names[typeKeyManager], name)
	}
	for name := range nodeAttestors {
		names[typeNodeAttestor] = append(names[typeNodeAttestor], name)
	}
	for kind, of := range publishers {
		names[kind] = slices.Sorted(maps.Keys(of))
	}
	return names
}

// storeEnv is what a store is given beside its own configuration.
type storeEnv struct {
	log *slog.Logger
	reg prometheus.Registerer
	// existing: a store that is not there is not made, if that can be told by
	// the engine alone.
	existing bool
}

// openStore and openKeys open what the file asks for. The directory data_dir is
// there when they are called.
type (
	openStore func(ctx context.Context, env storeEnv) (store.Store, error)
	openKeys  func(ctx context.Context) (keys.Manager, error)
)

func openBolt(cfg bolt.Config) openStore {
	return func(_ context.Context, env storeEnv) (store.Store, error) {
		cfg.Logger, cfg.Registerer = env.log, env.reg
		s, err := bolt.Open(cfg)
		if err != nil {
			return nil, keyError("plugins.DataStore", "%w", err)
		}
		return s, nil
	}
}

// control is the parts of one server, put together. Nothing runs yet.
type control struct {
	settings Settings
	log      *slog.Logger
	metrics  *prometheus.Registry

	store     store.Store
	registry  *registry.Registry
	index     *registry.Index
	graph     *entitle.Graph
	authority *ca.Authority
	roots     *roots
	kept      *kept // nil: keys go with the process
	svid      *ownSVID
	agents    *agentapi.Authenticator
	fresh     *freshness
	presence  *presence

	attest *agentapi.Service
	entry  *entryapi.Service
	svids  *svidapi.Service
	bundle *bundleapi.Service
	trust  *trustdomainapi.Service
	hub    *feedapi.Hub
	health *healthapi.Service
	own    *authorityapi.Service
	debug  *debugapi.Service
	logger *loggerapi.Service
	ops    *operatorapi.Service
	// watchers are the node attestors that can see nodes go, by name.
	watchers  map[string]node.Watcher
	publisher *publish.Publisher
	audit     *audit.Log
	chain     *chain
	door      *door

	listeners listeners
	state     state
}

// assemble opens the store and the keys and builds everything on them. The
// caller closes what it returns. The authority is ready when it returns, so that
// signing needs to wait for nothing else.
func assemble(ctx context.Context, s Settings, c choice, log *slog.Logger) (_ *control, err error) {
	td, err := spiffeid.TrustDomainFromString(s.TrustDomain)
	if err != nil {
		return nil, keyError("server.trust_domain", "%w", err)
	}
	if err := c.foreign.refuse(); err != nil {
		return nil, err
	}
	if err := prepareDataDir(s.DataDir); err != nil {
		return nil, err
	}
	k := &control{settings: s, log: log, metrics: telemetry.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	// 1. What remembers. The keys first: they are only read, so that what is
	// wrong with them leaves no empty store behind.
	manager, err := c.keys(ctx)
	if err != nil {
		return nil, err
	}
	engine, err := c.openWhole(ctx, storeEnv{log: log, reg: k.metrics})
	if err != nil {
		return nil, err
	}
	k.store = engine
	if k.store, err = watchStore(engine, k.metrics); err != nil {
		return nil, err
	}
	serverID, err := loadServerID(s.DataDir)
	if err != nil {
		return nil, err
	}
	k.presence = newPresence(k.store, serverID, s.DataDir, log)
	if err := k.presence.take(ctx); err != nil {
		return nil, err
	}
	if k.registry, err = registry.New(ctx, registry.Config{Store: k.store, TrustDomain: td, Logger: log}); err != nil {
		return nil, err
	}
	k.index, k.graph = registry.NewIndex(), entitle.New(td)
	k.fresh = newFreshness(k.store, k.index, s.MaxStaleness, log, k.staleChanged)
	if err := k.fresh.register(k.metrics); err != nil {
		return nil, err
	}
	// 2. What signs.
	if err := k.buildAuthority(ctx, td, serverID, manager); err != nil {
		return nil, err
	}
	// 3. What answers.
	if err := k.buildServices(td, c.verifiers); err != nil {
		return nil, err
	}
	// 4. What is told to others.
	if err := k.buildPublisher(c.targets); err != nil {
		return nil, err
	}
	log.InfoContext(ctx, "server is assembled", telemetry.TrustDomain, td.Name(), telemetry.ServerID, serverID,
		telemetry.Engine, k.store.Info().Engine, telemetry.StoreID, k.store.Info().ID)
	return k, nil
}

func (k *control) buildAuthority(ctx context.Context, td spiffeid.TrustDomain, serverID string, manager keys.Manager) error {
	cfg := ca.Config{
		TrustDomain: td,
		ServerID:    serverID,
		Registry:    k.registry,
		Keys:        manager,
		CATTL:       k.settings.CATTL,
		X509SVIDTTL: k.settings.DefaultX509SVIDTTL,
		JWTSVIDTTL:  k.settings.DefaultJWTSVIDTTL,
		AgentTTL:    k.settings.AgentTTL,
		JWTIssuer:   k.settings.JWTIssuer,
		DisableJWT:  k.settings.DisableJWTSVIDs,
		CASubject: pkix.Name{
			Country:      k.settings.CASubject.Country,
			Organization: k.settings.CASubject.Organization,
			CommonName:   k.settings.CASubject.CommonName,
		},
		Logger:     k.log,
		Registerer: k.metrics,
	}
	var err error
	if cfg.CAKeyType, err = keys.ParseType(k.settings.CAKeyType); err != nil {
		return keyError("server.ca_key_type", "%w", err)
	}
	if cfg.JWTKeyType, err = keys.ParseType(k.settings.JWTKeyType); err != nil {
		return keyError("server.jwt_key_type", "%w", err)
	}
	if k.authority, err = ca.New(cfg); err != nil {
		return err
	}
	if manager.Durable() {
		k.kept = &kept{
			path: filepath.Join(k.settings.DataDir, keptFile), storeID: k.store.Info().ID, serverID: serverID, trustDomain: td.Name(),
			registry: k.registry, log: k.log, changed: make(chan struct{}, 1),
		}
		if err := k.kept.adopt(ctx, manager, time.Now()); err != nil {
			return err
		}
	}
	if err := k.authority.Start(ctx); err != nil {
		return err
	}
	bundle, err := k.registry.LoadBundle(ctx, td)
	if err != nil {
		return err
	}
	k.roots = &roots{td: td}
	if err := k.roots.set(bundle); err != nil {
		return err
	}
	k.svid = newOwnSVID(td, k.authority, k.log)
	return k.svid.renew(ctx, time.Now())
}

func (k *control) buildServices(td spiffeid.TrustDomain, open map[string]openVerifier) (err error) {
	admins, err := k.settings.adminIDs()
	if err != nil {
		return keyError("server.admin_ids", "%w", err)
	}
	var record *audit.Log
	if k.settings.AuditLogEnabled {
		record = audit.New(k.log)
	}
	k.audit = record
	verifiers, err := k.openVerifiers(open)
	if err != nil {
		return err
	}
	k.agents = agentapi.NewAuthenticator(k.index, k.registry, k.fresh.wait)
	k.attest = agentapi.New(agentapi.Config{
		TrustDomain: td, Registry: k.registry, Index: k.index, Issuer: k.authority,
		Verifiers: verifiers, Fresh: k.fresh.wait, Logger: k.log, Audit: record,
	})
	k.entry = entryapi.New(entryapi.Config{
		TrustDomain: td, Registry: k.registry, Index: k.index, Fresh: k.fresh.wait,
		Entitlements: k.graph, Logger: k.log, Audit: record,
	})
	k.svids = svidapi.New(svidapi.Config{
		TrustDomain: td, Graph: k.graph, Fresh: k.fresh.wait, Issuer: k.authority, DisableJWT: k.settings.DisableJWTSVIDs,
		Logger: k.log, Audit: record,
	})
	k.bundle = bundleapi.New(bundleapi.Config{
		TrustDomain: td, Registry: k.registry, Index: k.index, Own: k.roots.bundle, Fresh: k.fresh.wait, Logger: k.log, Audit: record,
	})
	k.trust = trustdomainapi.New(trustdomainapi.Config{
		TrustDomain: td, Registry: k.registry, Index: k.index, Fresh: k.fresh.wait, Logger: k.log, Audit: record,
	})
	k.own = authorityapi.New(authorityapi.Config{
		Authority: k.authority, DisableJWT: k.settings.DisableJWTSVIDs, Fresh: k.fresh.wait, Agent: k.index.Agent,
		UpdateBundle: func(ctx context.Context, change func(*registry.Bundle) error) (*registry.Bundle, error) {
			return k.registry.UpdateBundle(ctx, td, change)
		},
		Logger: k.log, Audit: record,
	})
	k.debug = debugapi.New(debugapi.Config{
		TrustDomain: td, Index: k.index, Own: k.roots.bundle, SVID: k.svid.chain, Started: time.Now(),
	})
	k.health = healthapi.New(k.ready)
	// A store that is read and not written does not keep a server from issuing,
	// so it is no reason to send agents away; it is one to wake somebody.
	k.health.Part("store", k.store.Check)
	if k.hub, err = feedapi.New(feedapi.Config{
		TrustDomain: td, Graph: k.graph, Index: k.index, Head: k.store.Head, SetVersion: k.attest.SetVersion,
		OnDraining: k.health.Changed,
		Logger:     k.log, Audit: record, Registerer: k.metrics,
	}); err != nil {
		return err
	}
	k.ops = operatorapi.New(operatorapi.Config{Store: k.store, Index: k.index, Feed: k.hub, Logger: k.log, Audit: record})
	calls, err := newCallMetrics(k.metrics)
	if err != nil {
		return err
	}
	rates, err := newLimits(k.settings.RateLimit, k.metrics, k.log)
	if err != nil {
		return err
	}
	proxies, err := k.settings.proxies()
	if err != nil {
		return keyError("server.proxy_protocol_trusted_cidrs", "%w", err)
	}
	if k.door, err = newDoor(proxies, connlimit.OpenFiles(), k.metrics, k.log); err != nil {
		return err
	}
	k.chain = &chain{metrics: calls, limits: rates, log: k.log, gate: &gate{
		roots: k.roots, admins: admins, index: k.index, agents: k.agents, trusted: k.fresh.trusted,
		audit: record, refusals: audit.NewRefusals[sender](record),
	}}
	return nil
}

// close releases what assemble opened. It may be called for what is half built.
func (k *control) close() error {
	problem := k.listeners.closeAll()
	k.presence.release()
	if k.store != nil {
		problem = errors.Join(problem, k.store.Close())
	}
	return problem
}
