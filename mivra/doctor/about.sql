-- What a connection leads to, and what its role may do; asks for no right.
select current_setting('server_version_num')::integer / 10000 as version, current_user::text as role,
  pg_is_in_recovery() as replica,
  -- Of one server and one database, whichever way leads to it.
  pg_postmaster_start_time()::text || ' ' || (select oid from pg_database where datname = current_database()) as identity,
  to_regclass('public.operators') is not null as migrated,
  coalesce(pg_has_role(current_user, (select relowner from pg_class where oid = to_regclass('public.operators')), 'member'),
    has_schema_privilege('public', 'create')) or current_user = 'service_role' as may_everything,
  coalesce(pg_has_role(current_user, to_regrole('mivra_listener')::oid, 'member'), false) as may_run_bots
